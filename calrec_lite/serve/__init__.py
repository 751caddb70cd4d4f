"""An export behind HTTP, with a page to try it on (docs/serving.md)."""
