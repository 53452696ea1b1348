"""Ground floor: what knows nothing of Colab."""
