"""How does a study run on machines that are elsewhere?"""
