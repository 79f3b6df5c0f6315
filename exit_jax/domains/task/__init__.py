"""Your own prompts and rewards: rows from files, data sets or functions, scored by functions of yours."""
