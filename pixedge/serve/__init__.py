"""The HTTP server: OpenAI's chat API and a page, in front of the one engine."""
