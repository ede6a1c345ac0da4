"""Avro schemas, topics and examples of Consentry, as data. Read them through
`importlib.resources`.
"""
