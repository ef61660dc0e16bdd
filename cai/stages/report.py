def run(config, inputs, work, context):
    (work / "report.html").write_text("x")
    return {}
