PRECISIONS = ("float32", "float16", "int8")
