"""Who this device is: its keys, made here and never sent anywhere, and the certificates that vouch for them."""
