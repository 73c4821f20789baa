"""The grader's side: judges, referee, and the road from a submitted notebook to the gradebook."""
