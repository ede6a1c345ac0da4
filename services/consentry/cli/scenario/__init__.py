"""`consentry scenario …`: stories as data, held against the rules and against the real stack."""
