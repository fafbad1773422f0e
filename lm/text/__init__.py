"""Text before it is numbers: cleaning, duplicates, tokenizers."""
