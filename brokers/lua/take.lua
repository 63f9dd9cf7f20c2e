-- Takes triggers out of queues, the best priority of each first.
--
-- KEYS      the queues, the one whose turn it is first
-- ARGV[1]   how many triggers to take at most
-- returns   triples: index of the queue in KEYS (from 1), its triggers joined by NUL, their scores joined by NUL.
--           Two strings for a whole queue, because a client in Python reads a reply of n strings in n steps
--
-- Every queue gets an even share first, and what the others left over after that, so that none starves.
-- A queue that cannot be read (its key holds something else) is passed over; its error is returned when nothing was taken.

local left = tonumber(ARGV[1])
local share = math.ceil(left / #KEYS)
local reply, empty, failure = {}, {}, nil

for pass = 1, 2 do
  for i, key in ipairs(KEYS) do
    if left <= 0 then
      return reply
    end
    if not empty[i] then
      local wanted = pass == 1 and math.min(share, left) or left
      local popped = redis.pcall('ZPOPMIN', key, wanted)
      if popped.err then
        failure = popped
        empty[i] = true
      else
        local triggers, scores = {}, {}
        for at = 1, #popped, 2 do
          triggers[#triggers + 1] = popped[at]
          scores[#scores + 1] = popped[at + 1]
        end
        left = left - #triggers
        empty[i] = #triggers < wanted
        if #triggers > 0 then
          reply[#reply + 1] = i
          reply[#reply + 1] = table.concat(triggers, '\0')
          reply[#reply + 1] = table.concat(scores, '\0')
        end
      end
    end
  end
end

if #reply == 0 and failure then
  return failure
end
return reply
