"""The common English words that the demo's signs show beside random letters."""

_TEXT = """
able air apple area arm art ask baby back bag ball bank bath beach bear bed bell big bird black boat
body book both box boy bread bridge bright bring bus busy cake call camp car card care cat chair child
city clean clock cloud coat cold cook corn cup dance dark day deep desk dish dog door down draw dream
drink drive dry dust ear early earth east easy edge egg empty end enter exit eye face fair fall family
farm fast field find fine fire fish five flag floor flower fly food foot forest fork four free fresh
friend fruit full game garden gate gift girl glad glass goat gold good grass great ground group hair
half hall hand happy hat head heart heavy help hill home hope horse hotel hour house ice idea iron
island jacket job join juice jump keep key kind king kitten knife lake lamp land large late laugh leaf
learn left lemon letter light lion list little long lucky lunch magic mail map market meal milk mind
mirror money month moon mother mouse mouth music name near neck new night noise north nose ocean office
open orange paint paper park party path pencil phone piano plane plant plate play pocket pond potato
press price quick quiet rabbit radio rain read ready rice ride right ring river road rock roof room root
rose round sale salt sand school sea seat seed shade sharp sheep ship shirt shoe shop short silver
simple sing sister sleep slow small smile snow soap soft song soup south space spoon sport spring stand
start stone stop storm story street strong sugar summer sun sweet table tail tall taste tea ten tent
thank three ticket tiger time today tooth top tower town toy train travel tree trip truck true turn
uncle under valley view visit voice wait walk wall warm wash watch water wave way week west wheel white
wide wind window winter wise wolf woman wood work world write yard year yellow young zebra zero
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
