"""How does a trained model come in and go out, from a run or as a Hugging Face model folder?"""
