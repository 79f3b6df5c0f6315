"""Sentence encoders for the diversity bonus: BERT, RoBERTa and ModernBERT from Hugging Face weights."""
