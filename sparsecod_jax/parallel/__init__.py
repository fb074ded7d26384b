"""Which devices are there, and how is the work divided over them?"""
