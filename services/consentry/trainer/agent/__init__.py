"""The client as a small local HTTP service, for trainers in other languages: `consentry agent`."""
