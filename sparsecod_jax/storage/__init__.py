"""What lies on disk or in a bucket, and how does it stay whole?"""
