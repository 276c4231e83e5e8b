"""What overlapc would do on a node of eight H100s, computed on any machine.

    python -m examples.plan_without_gpu

Nothing here needs a GPU, a process group or even torch. The numbers are predictions.
"""

import overlapc


def main() -> None:
    """Print a plan of Llama 3 70B's down projection for each number of tokens in a batch."""
    for tokens in (64, 512, 2048, 8192, 32768):
        plan = overlapc.plan(
            m=tokens,
            n=8192,
            k=28672 // 8,
            collective="all_reduce",
            world_size=8,
            dtype="bfloat16",
            target="h100-nvlink",
        )
        print(f"{tokens:>6} tokens, {plan.speedup:.2f}x: {plan}\n")


if __name__ == "__main__":
    main()
