"""The filters: one module for each library that training data is read with, and shared parts."""
