"""One model over several machines: who may take part, what each fetches and holds, and how they stay together."""
