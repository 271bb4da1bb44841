"""Models from the Hugging Face hub: downloaded at a pinned commit, kept whole, found again. Never imports torch."""
