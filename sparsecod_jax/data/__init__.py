"""What does it learn from?"""
