"""Readers of data sets as distributed, one file a family; nothing is ever downloaded."""
