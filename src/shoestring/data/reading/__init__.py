"""Files of text and of rows as streams, one reader for each format, each in constant memory."""
