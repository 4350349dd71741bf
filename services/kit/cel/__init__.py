"""The expression language: CEL over JSON values, with an exact bound on the work of every evaluation.

`services.kit.expressions` and `services.kit.templates` are the doors; nothing else imports from here. Read in this
order: `tokens`, `syntax`, `parser` (text to tree); `compiler`, `access`, `logic`, `macros` (tree to closures);
`evaluation` (the budget); `values`, `functions` and what they name (what closures do); `results` (what may leave).
"""
