"""Text in: documents from files, data sets or the embedded corpus, and packed rows of tokens made of them."""
