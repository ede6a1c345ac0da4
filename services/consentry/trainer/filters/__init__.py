"""One module for each library that training data is read with; importing one imports its
library.
"""
