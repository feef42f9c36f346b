"""The browser app: give it a photo, watch the caption grow, point at a word and see where the network looked.

It needs gradio, which the rest of the package does not.
"""
