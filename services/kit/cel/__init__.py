"""The expression language: CEL over JSON values, with an exact bound on the work of every evaluation.

`services.kit.expressions` and `services.kit.templates` are the doors; nothing else imports from here. Read in this order:
`tokens`, `syntax` and `parser` (text to tree), `compiler` and `macros` (tree to closures), `evaluation` (the budget),
`values`, `functions`, `times`, `patterns` (what the closures do), `results` (what may leave).
"""
