"""How does a model leave, and enter? As a stock checkpoint of Hugging Face."""
