"""Pictures for people: colours, drawing, and the overview of a slide."""
