"""saejax: do two language models share a feature space?"""
