"""Numbers in, numbers out: what a job will take, and which engine keeps it inside its budget. Torch-free."""
