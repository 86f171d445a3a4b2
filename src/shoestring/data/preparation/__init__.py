"""From documents to token shards: read, encoded on all cores, judged in their order, written."""
