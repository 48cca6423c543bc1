"""What DeepSpeed's engine holds beside the model's own pass, a module for each family of ZeRO stages."""
