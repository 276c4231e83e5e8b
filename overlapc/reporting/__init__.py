"""What was done at every site and why: records, tables, timelines, dumps."""
