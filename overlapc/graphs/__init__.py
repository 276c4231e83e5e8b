"""FX graphs: what their nodes say of chains, and how ops of ours are put in."""
