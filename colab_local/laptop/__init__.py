"""The machine with the browser: ssh, the agent that it sends to the host, Colab's page, cures."""
