-- Says which triggers are not in a queue.
--
-- KEYS[1]   the queue
-- ARGV[1]   triggers, joined by NUL
-- returns   the places in ARGV[1], from 1, of those that are not there; usually none, so that the reply is short

-- Lua can hand some 8,000 values to one call.
local CHUNK = 1000

local triggers = {}
for trigger in string.gmatch(ARGV[1], '[^%z]+') do
  triggers[#triggers + 1] = trigger
end

local missing = {}
for first = 1, #triggers, CHUNK do
  local last = math.min(first + CHUNK - 1, #triggers)
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(triggers, first, last))
  for at = first, last do
    -- A missing score is false in Lua.
    if not scores[at - first + 1] then
      missing[#missing + 1] = at
    end
  end
end
return missing
