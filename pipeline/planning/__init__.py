"""What should I write, and what will it need? A first config from a look at the data, the forecast of a dry run, what a
key means, whether models fit their images.

Asks no machine but this one; `preflight/` asks all of them.
"""
