"""Consentry carries consent changes, pauses and policies to every system that trains on member
data.
"""
