"""What is measured while it trains?"""
