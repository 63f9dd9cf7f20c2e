-- Puts triggers into one queue, each at the end of its priority band.
--
-- KEYS[1]   the queue: a sorted set of triggers, the lowest score first
-- KEYS[2]   the sequence, one for all queues of a prefix
-- ARGV      pairs: a band (0 to 9, lower first), then its triggers, joined by NUL (no trigger holds one)
-- returns   how many triggers were not waiting before
--
-- score = band * 2^44 + sequence: exact in a double for 17 million million triggers.
-- LT: one that waits already keeps its place, or moves forward when its priority was raised. Needs Redis 6.2.

local BAND = 17592186044416
-- Lua can hand some 8,000 values to one call.
local CHUNK = 1000

local bands, total = {}, 0
for i = 1, #ARGV, 2 do
  local triggers = {}
  for trigger in string.gmatch(ARGV[i + 1], '[^%z]+') do
    triggers[#triggers + 1] = trigger
  end
  bands[#bands + 1] = { tonumber(ARGV[i]) * BAND, triggers }
  total = total + #triggers
end

-- The sequence goes first: under maxmemory or on a replica it is refused, and nothing at all is written.
local sequence = redis.call('INCRBY', KEYS[2], total) - total
local added = 0
for _, band in ipairs(bands) do
  local base, triggers = band[1], band[2]
  for first = 1, #triggers, CHUNK do
    local scored = {}
    for i = first, math.min(first + CHUNK - 1, #triggers) do
      sequence = sequence + 1
      scored[#scored + 1] = base + sequence
      scored[#scored + 1] = triggers[i]
    end
    added = added + redis.call('ZADD', KEYS[1], 'LT', unpack(scored))
  end
end
return added
