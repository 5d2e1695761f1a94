"""Pictures for people: colours, drawing, the overview of a slide."""
