# What type checkers and editors see: the names load at their first use (__init__.py).
from cai.api.engine import Engine as Engine
from cai.api.engine import open_engine as open_engine
from cai.api.method import compare as compare
from cai.api.method import revise as revise
from cai.api.results import Results as Results
from cai.api.run import Run as Run
from cai.errors import CaiError as CaiError
from cai.errors import UsageError as UsageError
from cai.method.constitution import Constitution as Constitution
from cai.method.critique import Revision as Revision
from cai.method.preferences import PreferencePair as PreferencePair

__all__: list[str]
__version__: str
