"""The commands of ``bge-bench``, and the demo. Nothing else imports them."""
