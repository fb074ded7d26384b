"""What did the study find?"""
