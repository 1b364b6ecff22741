"""``undoubt relay``: delivers the messages of an outbox, each at least once, and those of a key in order.

What enters: the outbox of one database (:mod:`undoubt.participants.outbox`). What leaves: deliveries to one
sink: a webhook, a function, or Kafka. A message stays in the outbox until its sink has acknowledged it; so a
relay that is killed at any time delivers it again, under the same dedupe id. A message of a key is delivered
only after all earlier messages of the key were acknowledged. A message that cannot be delivered blocks its
own key alone.

The modules, in the order in which a message passes them:

===================  =========================================================================================
:mod:`.relay`        reads messages, delivers those of each key one after another, and removes them.
:mod:`.meter`        declares what counts the deliveries.
:mod:`.sink`         declares a sink.
:mod:`.naming`       finds the sink that a command line names.
:mod:`.webhook`      delivers by HTTP.
:mod:`.function`     delivers to a function of the application.
:mod:`.kafka`        delivers to Kafka.
===================  =========================================================================================
"""

from undoubt.participants.outbox import Message
from undoubt.relay.function import FunctionSink
from undoubt.relay.naming import sink_of
from undoubt.relay.relay import Relay
from undoubt.relay.sink import Sink, Undelivered

__all__ = ["FunctionSink", "Message", "Relay", "Sink", "Undelivered", "sink_of"]
