"""Makes the documentation site: `make docs`. Pages stand in docs/, what MkDocs takes in mkdocs.yml.

A folder is laid out as the repository is, so that every link works in both: the pages as they are,
and those that are generated beside them. MkDocs then builds that folder. What is generated is
Markdown, so another builder of sites would do.
"""
