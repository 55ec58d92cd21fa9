"""Items kept as they were sent, in chunks whose content only native readers need: they are decoded when these come."""

from reverb_async.core.encoded.items import EncodedItems
from reverb_async.core.encoded.layout import EncodedLayout
from reverb_async.core.encoded.records import Columns, EncodedItem
from reverb_async.core.encoded.tensor_cache import DamagedChunks

__all__ = ["Columns", "DamagedChunks", "EncodedItem", "EncodedItems", "EncodedLayout"]
