"""Sentence encoders past 512 tokens: what they are tested on, how they train, what they are compared with."""
