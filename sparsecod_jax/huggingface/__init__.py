"""What does a folder of Hugging Face hold? Stock architectures only, safetensors only."""
