"""What does each layer contribute?"""
